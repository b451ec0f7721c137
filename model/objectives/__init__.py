"""One pure function per training objective. Nothing here knows about models, files or devices."""
