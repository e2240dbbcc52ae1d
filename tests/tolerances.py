"""Every numerical tolerance of the test suite, once, with its reason. Never relaxed: a failing equality is a bug."""

# Relative and absolute error of two float64 evaluations of the same closed form.
FLOAT64 = 1e-10
# float32: the same sum in another order (fused = dense, packed = unpacked, micro-batches, meshes, layouts).
FLOAT32 = 1e-5
# bfloat16 has 8 bits of significand: two roundings of a value of order one.
BFLOAT16 = 2e-2
# Our logits against another framework's on tiny random weights, relative to the logits' size.
PARITY_LOGITS = 2e-5
# Hidden states layer by layer against another framework's, relative.
PARITY_HIDDEN = 1e-5
# The cached sampler against one pass over the whole sequence, nats a token, float32.
SAMPLER_LOG_PROBS = 2e-5
# Finite differences in float64 (jax.test_util.check_grads): rtol = atol.
CHECK_GRADS_FLOAT64 = 1e-6
# Coverage of a 95 % interval over 1,000 simulated data sets: four standard deviations, 4 * sqrt(.95 * .05 / 1000).
COVERAGE = 0.028
# The same with 300 data sets, or where data are skewed and few (the bootstrap's own defect, about -.02, on top).
COVERAGE_SKEWED = 0.05
# Memory that a plan says against memory as measured, relative: kernels' scratch and what an allocator rounds is in one.
PLANNED_MEMORY = 0.1
