"""Answer checkers, benchmark metrics and intervals: pure Python, imports none of the other rooms."""
