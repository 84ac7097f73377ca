"""What files of the authors' released code hold, read without running what they may carry."""
