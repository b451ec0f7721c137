"""Writers of other people's formats: what a format can hold comes back unchanged through its importer."""
