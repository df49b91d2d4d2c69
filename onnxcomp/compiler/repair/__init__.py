"""The refitting walk and every closed-form refit."""
