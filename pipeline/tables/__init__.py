"""What people do with `inference.h5`: tables of posteriors, Bayes factors, chains for other programs."""
