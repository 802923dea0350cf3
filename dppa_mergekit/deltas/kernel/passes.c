/* The compiled passes over deltas, for sums, selection, amplification and kept elements; and the
   hashes and random keys of indices. Each pass is one loop.

A delta is fine_tuned - base, computed in float32 from float32, bfloat16 or float16 values. Every
rounding is that of the package's Python code, so both write the same bytes; only sums in double
are added up in another order. A pass allocates nothing and writes to its outputs alone.

This file holds what does not depend on the dtype of the tensors. passes_of_dtype.h holds the passes
over tensors, and is included at the end once for each dtype.
*/

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || __FLT_EVAL_METHOD__ != 0
#error "The passes need a little-endian processor that computes float in float, not in double."
#endif

/* Compile a pass twice, with AVX2 and without; the loader picks one. On some systems clang does not
   support target_clones. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define FOR_THIS_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_THIS_PROCESSOR
#endif

/* Inlined into the AVX2 version of a pass too: a function called from there would be compiled
   without AVX2. */
#define INLINE static inline __attribute__((always_inline))

#define BLOCK 64 /* values that are computed together, in the first-level cache */
#define LANES 16 /* partial sums, which the processor can update at the same time */

/* The digest of the source files. The loader rejects a library built from other sources. */
const char *passes_source(void) { return SOURCE; }

typedef float float32;
typedef uint16_t bfloat16;
typedef uint16_t float16;

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* widen_*: convert to float32, exactly. */

static inline float widen_float32(float32 value) { return value; }

static inline float widen_bfloat16(bfloat16 value) { return from_bits((uint32_t)value << 16); }

/* A multiplication adjusts the exponent: it is exact, and it makes subnormal values normal. */
static inline float widen_float16(float16 value) {
    uint32_t magnitude = value & 0x7FFFu, sign = (uint32_t)(value & 0x8000u) << 16;
    float scaled = from_bits(magnitude << 13) * 0x1p112f;
    uint32_t infinite = magnitude >= 0x7C00u ? 0x7F800000u : 0;
    return from_bits(to_bits(scaled) | infinite | sign);
}

/* narrow_*: round to the nearest value, ties to even. */

static inline float32 narrow_float32(float value) { return value; }

static inline bfloat16 narrow_bfloat16(float value) {
    uint32_t bits = to_bits(value);
    uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    return (bfloat16)(value == value ? rounded : 0x7FC0u);
}

/* Below 2^-14, adding 0.5 rounds to the precision of subnormal values. */
static inline float16 narrow_float16(float value) {
    uint32_t bits = to_bits(value), magnitude = bits & 0x7FFFFFFFu;
    uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1)) >> 13;
    uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3F000000u;
    uint32_t infinity_or_nan = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
    uint32_t rounded = magnitude < 0x38800000u ? subnormal : normal;
    return (float16)((magnitude >= 0x47800000u ? infinity_or_nan : rounded) |
                     (bits >> 16 & 0x8000u));
}

/* The key of a magnitude: its bit pattern, which orders as the magnitude does. Without the sign bit
   it is never negative, read as int32. */
static inline int32_t key_of(float value) { return (int32_t)(to_bits(value) & 0x7FFFFFFFu); }

/* The finaliser of MurmurHash3. It decides which of several equal keys are kept. */
INLINE uint32_t hash_of(uint32_t index) {
    index = (index ^ (index >> 16)) * 0x85EBCA6Bu;
    index = (index ^ (index >> 13)) * 0xC2B2AE35u;
    return index ^ (index >> 16);
}

/* Hash the indices of the elements that have a given key, in order; return how many they are.
   `index` and `keys` come from `find_keys`; indices count from `first`, where the chunk begins. */
int64_t hash_ties(const int32_t *index, const int32_t *keys, int64_t length, int32_t key,
                  int64_t first, uint32_t *hash) {
    int64_t found = 0;
    for (int64_t i = 0; i < length; i++) {
        hash[found] = hash_of((uint32_t)(first + index[i]));
        found += keys[i] == key;
    }
    return found;
}

/* The random number of 32 bits of an index, which two words select. */
INLINE uint32_t random_of(uint32_t index, uint32_t first, uint32_t second) {
    return hash_of(hash_of(index ^ first) ^ second);
}

/* Replace each index by its random number. */
FOR_THIS_PROCESSOR
void randomize(int64_t *index, int64_t length, uint32_t first, uint32_t second) {
    for (int64_t i = 0; i < length; i++)
        index[i] = random_of((uint32_t)index[i], first, second);
}

/* Pack a block's mask of zeros and ones into bits; the first element is the lowest bit. */
INLINE uint64_t bits_of(const int32_t *mask) {
    uint8_t bytes[BLOCK];
    uint64_t bits = 0, eight;
    for (int i = 0; i < BLOCK; i++)
        bytes[i] = (uint8_t)mask[i];
    for (int i = 0; i < BLOCK; i += 8) {
        memcpy(&eight, bytes + i, sizeof eight);
        /* Bit k of the product's highest byte is byte k: no two of the 64 terms overlap. */
        bits |= (eight * 0x0102040810204080u >> 56) << i;
    }
    return bits;
}

/* Read the next 64 bits of a mask, fewer at its end; the first element is the lowest bit. */
static inline uint64_t bits_from(const uint8_t *bits, int64_t left) {
    uint64_t word = 0;
    memcpy(&word, bits, left < 64 ? (size_t)((left + 7) / 8) : sizeof word);
    return word;
}

/* Whether a block has so many chosen elements that it is faster to copy every element, and advance
   past the chosen ones, than to jump from one chosen element to the next. */
#define MANY(chosen) ((chosen) > BLOCK / 4)

/* The delta of one model, its kept sets and their factors. A cut n keeps the elements with a key
   above above[n], and of those with this very key the ones whose hash is at most last[n]; none if
   last[n] is -1. A key is that of the magnitude or, of a random selection, the random number that
   `words` select, less 2^31. */
struct amplified_delta {
    const void *fine_tuned;
    const int32_t *above;
    const int64_t *last;
    const float *factor;
    int64_t cuts;
    float weight, divisor;
    int32_t random;
    uint32_t words[2];
};

struct combination {
    const struct amplified_delta *model;
    int64_t models;
    int32_t consensus, normalize;
    float divisor, lambda, limit;
};

/* Sum a block of the models' weighted deltas. Under consensus, an element takes part where its sign
   is that of the sum of all. */
INLINE void sum_models(const struct combination *combination, const float (*weighted)[BLOCK],
                       float *total) {
    float sign[BLOCK], agreeing[BLOCK], taking[BLOCK], divisor = combination->divisor;
    for (int i = 0; i < BLOCK; i++)
        total[i] = 0.0f + weighted[0][i];
    for (int64_t m = 1; m < combination->models; m++)
        for (int i = 0; i < BLOCK; i++)
            total[i] += weighted[m][i];
    if (!combination->consensus) {
        if (combination->normalize)
            for (int i = 0; i < BLOCK; i++)
                total[i] /= divisor;
        return;
    }
    /* The sign is plus where the sum is zero. */
    for (int i = 0; i < BLOCK; i++)
        sign[i] = total[i] < 0.0f ? -1.0f : 1.0f;
    for (int64_t m = 0; m < combination->models; m++) {
        float weight = combination->model[m].weight;
        /* A value that agrees is positive after multiplication by the majority's sign. */
        for (int i = 0; i < BLOCK; i++)
            agreeing[i] = weighted[m][i] * sign[i];
        for (int i = 0; i < BLOCK; i++)
            agreeing[i] = agreeing[i] > 0.0f ? agreeing[i] : 0.0f;
        for (int i = 0; i < BLOCK; i++)
            total[i] = (m ? total[i] : 0.0f) + agreeing[i];
        for (int i = 0; i < BLOCK; i++)
            taking[i] = (m ? taking[i] : 0.0f) + (agreeing[i] > 0.0f ? weight : 0.0f);
    }
    for (int i = 0; i < BLOCK; i++)
        total[i] *= sign[i];
    /* Where no model takes part, the sum is zero already. */
    if (combination->normalize)
        for (int i = 0; i < BLOCK; i++)
            total[i] /= taking[i] == 0.0f ? 1.0f : taking[i];
}

/* Name a function after the dtype that passes_of_dtype.h is included for: sum_tails_float16.
   A macro's argument is replaced by its value only one call further down. */
#define OF_DTYPE(name) EXPAND_AND_JOIN(name, DTYPE)
#define EXPAND_AND_JOIN(name, dtype) JOIN(name, dtype)
#define JOIN(name, dtype) name##_##dtype

#define DTYPE float32
#include "passes_of_dtype.h"
#undef DTYPE

#define DTYPE bfloat16
#include "passes_of_dtype.h"
#undef DTYPE

#define DTYPE float16
#include "passes_of_dtype.h"
#undef DTYPE
