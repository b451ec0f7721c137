"""KFP pipelines, profiles and runners. Imports components, and the other rooms' ``config`` modules."""
