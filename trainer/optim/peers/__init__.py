"""Low-memory optimizers that came after extreme tensoring, to compare with.

Each is the published algorithm on Keras' interface, checked against its reference
implementation. Lion, Muon and Adafactor are Keras' own.
"""
