"""Records, files, data set readers and loaders. (Not the Hugging Face package of that name.)"""
