"""Further families of the embedded corpus, one module each, drawn from what wheels carry: nothing is downloaded."""
