"""Samplers that know nothing of q: what a posterior from the network is compared with."""
