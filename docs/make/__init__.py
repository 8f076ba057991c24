"""What in the pages is made from the code. Owns no page's words."""
