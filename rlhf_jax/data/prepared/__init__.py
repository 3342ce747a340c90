"""Records written for others to read: prepared sets, and the forms of other projects."""
