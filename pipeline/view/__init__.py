"""What a person looks at: the token view and the card of a set."""
