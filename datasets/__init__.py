"""Records, files, data set readers and loaders; not the Hugging Face package of that name."""
