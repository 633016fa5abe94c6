"""The storage side: writes images and their chains, keeps the catalogue, restores, answers the API."""
