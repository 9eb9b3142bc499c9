// The first include of a file whose results are compared by tolerance, not by bits: multiply-adds
// may fuse in it, unlike elsewhere, which saves 12 % of the loss's instructions. Nothing in it may
// depend on a product that is rounded before it is added to something: mul_rn does not compile
// there. And gcc must not unroll the loops around those over lanes: then it vectorises neither (it
// took MART twice as long). Compilers that do not know the pragma lose only the speed.
#pragma once

#define ARD_MAY_FUSE
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast", "no-loop-unroll-and-jam")
#endif
