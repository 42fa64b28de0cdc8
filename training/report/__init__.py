"""Tables and one page from the results of evaluations; nothing in them is typed by hand."""
