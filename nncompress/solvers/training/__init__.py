"""Training by minibatches, for every solver that does: schedules, optimisers, epochs."""
