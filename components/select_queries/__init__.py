"""Keep the queries that are neither too easy nor too hard."""
