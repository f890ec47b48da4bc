"""Minibatch descent on the loss, with regularisers."""
