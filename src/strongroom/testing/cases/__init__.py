"""What a provider must do, one function for each rule."""
