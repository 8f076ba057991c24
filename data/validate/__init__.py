"""Checks of a dataset against an embodiment record: what is written in it, what it shows, and
whether the two agree.

`survey` reads every record and decodes nothing, `numeric` checks what it kept, `video` decodes the
images of a few episodes and checks them; `checks` runs all, `card` and `pictures` show what was
seen. What cannot be seen is not claimed: two cameras of equal rank (left and right) may be swapped,
and a damaged JPEG that still decodes passes.
"""
