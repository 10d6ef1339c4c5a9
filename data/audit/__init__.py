"""Know your data first: what is wrong with the images and labels of a data set, and what could be done about it.

`look` measures one file, `survey` all of them, with a cache; `duplicates` pairs what shows the same picture; `findings`
says what that means; `table` and `page` write it down; `actions` applies what the user decided; `labels` looks at
labels once a model has been trained. Nothing here changes a file of the data set.
"""
