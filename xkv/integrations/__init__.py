"""Drop-ins for engines, found by the engines' own plugin loaders."""
