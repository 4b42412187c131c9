"""The bundled small model, its world and its dictionaries."""
