"""How fast windows come out of a dataset, against tf.data and against decoding alone."""
