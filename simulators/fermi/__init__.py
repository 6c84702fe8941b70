"""Photon counts of the Fermi Large Area Telescope towards the inner Galaxy."""
