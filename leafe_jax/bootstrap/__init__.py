"""How the embedded base model is made, and how its habits are measured."""
