"""jaxalign: from a pretrained language model to an aligned one, in pure JAX.

    a model   = a config (a value) + a parameter tree (data)      jaxalign.models
    a method  = a pure loss over arrays                           jaxalign.losses
    training  = (state, frozen trees, batch) -> (state, metrics)  jaxalign.training
    frozen    = just another argument                             the reference model, a frozen trunk

Import what you use from its package; this module holds only the version.
"""

__version__ = "0.1.0"
