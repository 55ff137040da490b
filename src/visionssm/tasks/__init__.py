"""Training, evaluation and prediction. Import the modules: those that need Lightning take seconds to load."""
