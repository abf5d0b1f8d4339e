"""What a person looks at: terminal, report page, checks of a template and of a live server."""
