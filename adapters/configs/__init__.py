"""The configurations of the adapter kinds, as peft writes them: one strict struct per kind."""
