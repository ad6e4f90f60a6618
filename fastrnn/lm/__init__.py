"""Parts of the language-model trainer; `fastrnn.train` is the program over them."""
