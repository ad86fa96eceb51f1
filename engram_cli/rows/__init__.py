"""What a stored row is: its dtype, its codec, and how rows are read from any artifact."""
