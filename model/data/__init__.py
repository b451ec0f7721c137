"""The dataset contract: row schema, shard reader and writer, artifact identity, chat rendering."""
