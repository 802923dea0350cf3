/* The passes over a delta, each in one loop: sums, selection, amplification, kept elements; and
   random keys.

The delta of two tensors, tuned - base, is made in float32 from float32 or 16-bit values. Every
rounding is that of the package's Python code, so that both write the same bytes; only sums in
double are added up in another order. Pointers are to the first value of a chunk. Nothing is
allocated, and nothing but the outputs is written.
*/

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || __FLT_EVAL_METHOD__ != 0
#error "These passes need the lowest byte of a word first, and arithmetic in the type of the values."
#endif

/* Wider vectors where the processor has them; clang knows no such clones on all systems. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define FOR_THIS_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_THIS_PROCESSOR
#endif

/* Also into what is compiled for one processor: a call would go back to what fits all. */
#define INLINE static inline __attribute__((always_inline))

#define BLOCK 64 /* values that are computed together, in the first-level cache */
#define LANES 16 /* sums that are kept apart, so that they can be added at once */

/* What this was compiled from: the loader takes no library of another source. */
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

static inline float wide_float32(float32 value) { return value; }

static inline float wide_bfloat16(bfloat16 value) { return from_bits((uint32_t)value << 16); }

/* The exponent is moved by a product, which is exact and makes subnormal values normal. */
static inline float wide_float16(float16 value) {
    uint32_t magnitude = value & 0x7FFFu, sign = (uint32_t)(value & 0x8000u) << 16;
    float moved = from_bits(magnitude << 13) * 0x1p112f;
    uint32_t unbounded = magnitude >= 0x7C00u ? 0x7F800000u : 0;
    return from_bits(to_bits(moved) | unbounded | sign);
}

/* To the nearest, halves to even. */
static inline float32 narrow_float32(float value) { return value; }

static inline bfloat16 narrow_bfloat16(float value) {
    uint32_t bits = to_bits(value);
    uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    return (bfloat16)(value == value ? rounded : 0x7FC0u);
}

/* Below 2^-14 the sum with 0.5 rounds to what a subnormal value can hold. */
static inline float16 narrow_float16(float value) {
    uint32_t bits = to_bits(value), magnitude = bits & 0x7FFFFFFFu;
    uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1)) >> 13;
    uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3F000000u;
    uint32_t beyond = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
    uint32_t rounded = magnitude < 0x38800000u ? subnormal : normal;
    return (float16)((magnitude >= 0x47800000u ? beyond : rounded) | (bits >> 16 & 0x8000u));
}

/* Orders as the magnitude does; of values that are not negative when read as int32. */
static inline int32_t key_of(float value) { return (int32_t)(to_bits(value) & 0x7FFFFFFFu); }

/* The finaliser of MurmurHash3: by it, equal keys are told apart. */
INLINE uint32_t hash_of(uint32_t index) {
    index = (index ^ (index >> 16)) * 0x85EBCA6Bu;
    index = (index ^ (index >> 13)) * 0xC2B2AE35u;
    return index ^ (index >> 16);
}

/* Of places and keys, as `look` finds them in a chunk that begins at `first`: the hashes of the
   indices of those that equal a key, in order; returned by number. */
int64_t hashes(const int32_t *place, const int32_t *keys, int64_t length, int32_t key,
               int64_t first, uint32_t *hash) {
    int64_t found = 0;
    for (int64_t i = 0; i < length; i++) {
        hash[found] = hash_of((uint32_t)(first + place[i]));
        found += keys[i] == key;
    }
    return found;
}

/* Random numbers of 32 bits in the place of indices, keyed on two words. */
FOR_THIS_PROCESSOR
void randoms(int64_t *index, int64_t length, uint32_t first, uint32_t second) {
    for (int64_t i = 0; i < length; i++)
        index[i] = hash_of(hash_of((uint32_t)index[i] ^ first) ^ second);
}

/* A bit for each of a block's values, which are 0 or 1; the lowest is the first. */
INLINE uint64_t bits_of(const int32_t *mask) {
    uint8_t bytes[BLOCK];
    uint64_t bits = 0, eight;
    for (int i = 0; i < BLOCK; i++)
        bytes[i] = (uint8_t)mask[i];
    for (int i = 0; i < BLOCK; i += 8) {
        memcpy(&eight, bytes + i, sizeof eight);
        /* Of the product's highest byte, bit k is byte k: no two of the 64 terms meet. */
        bits |= (eight * 0x0102040810204080u >> 56) << i;
    }
    return bits;
}

/* The next 64 bits, fewer at the end; the lowest of a byte is the first. */
static inline uint64_t bits_from(const uint8_t *bits, int64_t left) {
    uint64_t word = 0;
    memcpy(&word, bits, left < 64 ? (size_t)((left + 7) / 8) : sizeof word);
    return word;
}

/* Few are set: from one to the next. Many: every value is written, and kept if it is set. */
#define MANY(set) ((set) > BLOCK / 4)

/* One of the models that are combined, and what is kept of its delta. A cut keeps what has a larger
   key, and what has this key and a hash that is not above its last; of no hash if that is -1. */
struct amplified {
    const void *tuned;
    const int32_t *above;
    const int64_t *last;
    const float *factor;
    int64_t cuts;
    float weight;
};

struct combination {
    const struct amplified *model;
    int64_t models;
    int32_t consensus, normalize;
    float divisor, lambda, limit;
};

/* The sum of a block's deltas; under consensus, of those whose sign is that of the sum of all. */
INLINE void summed(const struct combination *how, const float (*weighted)[BLOCK], float *total) {
    float sign[BLOCK], agreeing[BLOCK], taking[BLOCK], divisor = how->divisor;
    for (int i = 0; i < BLOCK; i++)
        total[i] = 0.0f + weighted[0][i];
    for (int64_t m = 1; m < how->models; m++)
        for (int i = 0; i < BLOCK; i++)
            total[i] += weighted[m][i];
    if (!how->consensus) {
        if (how->normalize)
            for (int i = 0; i < BLOCK; i++)
                total[i] /= divisor;
        return;
    }
    /* Plus where the sum is zero. */
    for (int i = 0; i < BLOCK; i++)
        sign[i] = total[i] < 0.0f ? -1.0f : 1.0f;
    for (int64_t m = 0; m < how->models; m++) {
        float weight = how->model[m].weight;
        /* What agrees is positive once it is multiplied by the majority's sign. */
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
    /* Where none takes part, the sum is zero already. */
    if (how->normalize)
        for (int i = 0; i < BLOCK; i++)
            total[i] /= taking[i] == 0.0f ? 1.0f : taking[i];
}

#define PASSES(TYPE)                                                                              \
                                                                                                  \
/* The delta of a block; zeros where it reaches beyond the chunk. */                              \
static inline void delta_##TYPE(const TYPE *tuned, const TYPE *base, int size, float *delta) {    \
    if (size == BLOCK) {                                                                          \
        for (int i = 0; i < BLOCK; i++)                                                           \
            delta[i] = wide_##TYPE(tuned[i]) - wide_##TYPE(base[i]);                              \
        return;                                                                                   \
    }                                                                                             \
    memset(delta, 0, BLOCK * sizeof *delta);                                                      \
    for (int i = 0; i < size; i++)                                                                \
        delta[i] = wide_##TYPE(tuned[i]) - wide_##TYPE(base[i]);                                  \
}                                                                                                 \
                                                                                                  \
/* The sum of the magnitudes, how many are not zero, and, returned by number, those above a       \
   floor, in order. */                                                                            \
FOR_THIS_PROCESSOR                                                                                \
int64_t sums_##TYPE(const TYPE *tuned, const TYPE *base, int64_t length, float floor,             \
                    float *above, double *sum, int64_t *nonzero) {                                \
    double lanes[LANES] = {0};                                                                    \
    int64_t found = 0, moved = 0;                                                                 \
    for (int64_t start = 0; start < length; start += BLOCK) {                                     \
        int size = length - start < BLOCK ? (int)(length - start) : BLOCK;                        \
        int here = 0, set = 0;                                                                    \
        float magnitude[BLOCK];                                                                   \
        int32_t inside[BLOCK];                                                                    \
        delta_##TYPE(tuned + start, base + start, size, magnitude);                               \
        for (int i = 0; i < BLOCK; i++)                                                           \
            magnitude[i] = __builtin_fabsf(magnitude[i]);                                         \
        for (int i = 0; i < BLOCK; i += LANES)                                                    \
            for (int lane = 0; lane < LANES; lane++)                                              \
                lanes[lane] += magnitude[i + lane];                                               \
        for (int i = 0; i < BLOCK; i++)                                                           \
            here += magnitude[i] != 0.0f;                                                         \
        moved += here;                                                                            \
        for (int i = 0; i < BLOCK; i++)                                                           \
            set += magnitude[i] > floor;                                                          \
        if (!set)                                                                                 \
            continue;                                                                             \
        for (int i = 0; i < BLOCK; i++)                                                           \
            inside[i] = magnitude[i] > floor;                                                     \
        if (MANY(set))                                                                            \
            for (int i = 0; i < size; i++) {                                                      \
                above[found] = magnitude[i];                                                      \
                found += inside[i];                                                               \
            }                                                                                     \
        else                                                                                      \
            for (uint64_t bits = bits_of(inside); bits; bits &= bits - 1)                         \
                above[found++] = magnitude[__builtin_ctzll(bits)];                                \
    }                                                                                             \
    *sum = 0;                                                                                     \
    for (int lane = 0; lane < LANES; lane++)                                                      \
        *sum += lanes[lane];                                                                      \
    *nonzero = moved;                                                                             \
    return found;                                                                                 \
}                                                                                                 \
                                                                                                  \
/* Of the magnitudes above each bound: the sum, and how many they are. */                         \
FOR_THIS_PROCESSOR                                                                                \
void tails_##TYPE(const TYPE *tuned, const TYPE *base, int64_t length, int64_t bounds,            \
                  const float *bound, double *sum, int64_t *number) {                             \
    for (int64_t n = 0; n < bounds; n++)                                                          \
        sum[n] = number[n] = 0;                                                                   \
    for (int64_t start = 0; start < length; start += BLOCK) {                                     \
        int size = length - start < BLOCK ? (int)(length - start) : BLOCK;                        \
        float magnitude[BLOCK];                                                                   \
        delta_##TYPE(tuned + start, base + start, size, magnitude);                               \
        for (int i = 0; i < BLOCK; i++)                                                           \
            magnitude[i] = __builtin_fabsf(magnitude[i]);                                         \
        for (int64_t n = 0; n < bounds; n++) {                                                    \
            float above = bound[n];                                                               \
            double lanes[LANES];                                                                  \
            int here = 0;                                                                         \
            for (int i = 0; i < BLOCK; i++)                                                       \
                here += magnitude[i] > above;                                                     \
            if (!here)                                                                            \
                continue;                                                                         \
            for (int lane = 0; lane < LANES; lane++)                                              \
                lanes[lane] = magnitude[lane] > above ? magnitude[lane] : 0.0f;                   \
            for (int i = LANES; i < BLOCK; i += LANES)                                            \
                for (int lane = 0; lane < LANES; lane++)                                          \
                    lanes[lane] += magnitude[i + lane] > above ? magnitude[i + lane] : 0.0f;      \
            for (int lane = 1; lane < LANES; lane++)                                              \
                lanes[0] += lanes[lane];                                                          \
            sum[n] += lanes[0];                                                                   \
            number[n] += here;                                                                    \
        }                                                                                         \
    }                                                                                             \
}                                                                                                 \
                                                                                                  \
/* How many keys lie above each interval, and, returned by number, the places and the keys of     \
   those within one. An interval has no key of a value beyond the chunk, which is 0. */           \
FOR_THIS_PROCESSOR                                                                                \
int64_t look_##TYPE(const TYPE *tuned, const TYPE *base, int64_t length, int64_t intervals,       \
                    const int32_t *low, const int32_t *high, int64_t *above, int32_t *place,      \
                    int32_t *keys) {                                                              \
    int64_t found = 0;                                                                            \
    for (int64_t n = 0; n < intervals; n++)                                                       \
        above[n] = 0;                                                                             \
    for (int64_t start = 0; start < length; start += BLOCK) {                                     \
        int size = length - start < BLOCK ? (int)(length - start) : BLOCK;                        \
        float delta[BLOCK];                                                                       \
        int32_t key[BLOCK], inside[BLOCK];                                                        \
        int set = 0;                                                                              \
        delta_##TYPE(tuned + start, base + start, size, delta);                                   \
        for (int i = 0; i < BLOCK; i++)                                                           \
            key[i] = key_of(delta[i]);                                                            \
        for (int64_t n = 0; n < intervals; n++) {                                                 \
            int32_t from = low[n], to = high[n], larger = 0;                                      \
            if (n == 0)                                                                           \
                for (int i = 0; i < BLOCK; i++)                                                   \
                    inside[i] = (key[i] >= from) & (key[i] <= to);                                \
            else                                                                                  \
                for (int i = 0; i < BLOCK; i++)                                                   \
                    inside[i] |= (key[i] >= from) & (key[i] <= to);                               \
            for (int i = 0; i < BLOCK; i++)                                                       \
                larger += key[i] > to;                                                            \
            above[n] += larger;                                                                   \
        }                                                                                         \
        for (int i = 0; i < BLOCK; i++)                                                           \
            set += inside[i];                                                                     \
        if (MANY(set))                                                                            \
            for (int i = 0; i < size; i++) {                                                      \
                place[found] = (int32_t)(start + i);                                              \
                keys[found] = key[i];                                                             \
                found += inside[i];                                                               \
            }                                                                                     \
        else if (set)                                                                             \
            for (uint64_t bits = bits_of(inside); bits; bits &= bits - 1) {                       \
                int here = __builtin_ctzll(bits);                                                 \
                place[found] = (int32_t)(start + here);                                           \
                keys[found++] = key[here];                                                        \
            }                                                                                     \
    }                                                                                             \
    return found;                                                                                 \
}                                                                                                 \
                                                                                                  \
/* weight * (factor * delta) of a block, with the factor of the first cut that keeps the element; 0\
   where none does. The base is wide already; the hashes of the block are computed when they are  \
   first needed. */                                                                               \
INLINE void weighted_##TYPE(const TYPE *tuned, const float *base, int size,                       \
                            const struct amplified *model, uint32_t first, uint32_t *hash,        \
                            int *hashed, float *delta) {                                          \
    float scale[BLOCK], weight = model->weight;                                                   \
    int32_t key[BLOCK];                                                                           \
    if (size == BLOCK)                                                                            \
        for (int i = 0; i < BLOCK; i++)                                                           \
            delta[i] = wide_##TYPE(tuned[i]) - base[i];                                           \
    else                                                                                          \
        for (int i = 0; i < BLOCK; i++)                                                           \
            delta[i] = i < size ? wide_##TYPE(tuned[i]) - base[i] : 0.0f;                         \
    for (int i = 0; i < BLOCK; i++)                                                               \
        key[i] = key_of(delta[i]);                                                                \
    for (int64_t left = model->cuts, n = left - 1; n >= 0; n--) {                                 \
        int32_t threshold = model->above[n], equal = 0;                                           \
        int64_t last = model->last[n];                                                            \
        float by = model->factor[n];                                                              \
        if (n == left - 1)                                                                        \
            for (int i = 0; i < BLOCK; i++)                                                       \
                scale[i] = key[i] > threshold ? by : 0.0f;                                        \
        else                                                                                      \
            for (int i = 0; i < BLOCK; i++)                                                       \
                scale[i] = key[i] > threshold ? by : scale[i];                                    \
        if (last < 0)                                                                             \
            continue;                                                                             \
        for (int i = 0; i < BLOCK; i++)                                                           \
            equal |= key[i] == threshold;                                                         \
        if (!equal)                                                                               \
            continue;                                                                             \
        if (!*hashed)                                                                             \
            for (int i = 0; i < BLOCK; i++)                                                       \
                hash[i] = hash_of(first + (uint32_t)i);                                           \
        *hashed = 1;                                                                              \
        for (int i = 0; i < BLOCK; i++)                                                           \
            scale[i] = (key[i] == threshold) & (hash[i] <= (uint32_t)last) ? by : scale[i];       \
    }                                                                                             \
    for (int i = 0; i < BLOCK; i++)                                                               \
        delta[i] = delta[i] * scale[i] * weight;                                                  \
}                                                                                                 \
                                                                                                  \
/* base + lambda * combined deltas; returned is how many results exceed the limit. `weighted` has \
   room for a block of every model. */                                                            \
FOR_THIS_PROCESSOR                                                                                \
int64_t combine_##TYPE(const TYPE *base, int64_t start, int64_t stop,                             \
                       const struct combination *how, float (*weighted)[BLOCK], float *total) {   \
    float lambda = how->lambda, limit = how->limit;                                               \
    int64_t beyond = 0;                                                                           \
    for (int64_t at = start; at < stop; at += BLOCK) {                                            \
        int size = stop - at < BLOCK ? (int)(stop - at) : BLOCK, hashed = 0, here = 0;            \
        float wide[BLOCK], sum[BLOCK];                                                            \
        uint32_t hash[BLOCK];                                                                     \
        if (size == BLOCK)                                                                        \
            for (int i = 0; i < BLOCK; i++)                                                       \
                wide[i] = wide_##TYPE(base[at + i]);                                              \
        else                                                                                      \
            for (int i = 0; i < BLOCK; i++)                                                       \
                wide[i] = i < size ? wide_##TYPE(base[at + i]) : 0.0f;                            \
        for (int64_t m = 0; m < how->models; m++)                                                 \
            weighted_##TYPE((const TYPE *)how->model[m].tuned + at, wide, size, &how->model[m],   \
                            (uint32_t)at, hash, &hashed, weighted[m]);                            \
        summed(how, (const float (*)[BLOCK])weighted, sum);                                       \
        for (int i = 0; i < BLOCK; i++)                                                           \
            sum[i] = sum[i] * lambda + wide[i];                                                   \
        for (int i = 0; i < BLOCK; i++)                                                           \
            here += !(__builtin_fabsf(sum[i]) <= limit);                                          \
        beyond += here;                                                                           \
        memcpy(total + (at - start), sum, (size_t)size * sizeof *sum);                            \
    }                                                                                             \
    return beyond;                                                                                \
}                                                                                                 \
                                                                                                  \
/* For every model the product of a gradient with its amplified delta: added to the models' blocks\
   of `lanes`, place by place. `weighted` has room for a block. */                                \
FOR_THIS_PROCESSOR                                                                                \
void products_##TYPE(const TYPE *base, int64_t start, int64_t stop,                               \
                     const struct combination *how, float *weighted, const float *gradient,       \
                     float (*lanes)[BLOCK]) {                                                     \
    for (int64_t at = start; at < stop; at += BLOCK) {                                            \
        int size = stop - at < BLOCK ? (int)(stop - at) : BLOCK, hashed = 0;                      \
        float wide[BLOCK], along[BLOCK];                                                          \
        uint32_t hash[BLOCK];                                                                     \
        for (int i = 0; i < BLOCK; i++)                                                           \
            wide[i] = i < size ? wide_##TYPE(base[at + i]) : 0.0f;                                \
        for (int i = 0; i < BLOCK; i++)                                                           \
            along[i] = i < size ? gradient[at - start + i] : 0.0f;                                \
        for (int64_t m = 0; m < how->models; m++) {                                               \
            weighted_##TYPE((const TYPE *)how->model[m].tuned + at, wide, size, &how->model[m],   \
                            (uint32_t)at, hash, &hashed, weighted);                               \
            for (int i = 0; i < BLOCK; i++)                                                       \
                lanes[m][i] += weighted[i] * along[i];                                            \
        }                                                                                         \
    }                                                                                             \
}                                                                                                 \
                                                                                                  \
/* Of kept elements, whose values lie one after the other: base + weight * (factor * delta), in    \
   the output's type, each to where its bit is set. */                                            \
FOR_THIS_PROCESSOR                                                                                \
void place_##TYPE(const TYPE *tuned, const TYPE *base, int64_t kept, const uint8_t *bits,         \
                  int64_t length, float divisor, float factor, float weight, TYPE *out) {         \
    TYPE ready[BLOCK];                                                                            \
    int64_t done = 0;                                                                             \
    int at = BLOCK;                                                                               \
    for (int64_t start = 0; start < length; start += 64) {                                        \
        for (uint64_t word = bits_from(bits + start / 8, length - start); word; word &= word - 1) { \
            if (at == BLOCK) {                                                                    \
                int size = kept - done < BLOCK ? (int)(kept - done) : BLOCK;                      \
                float delta[BLOCK];                                                               \
                delta_##TYPE(tuned + done, base + done, size, delta);                             \
                /* A sum with 0 comes first, as in a merge: it leaves no -0. */                   \
                for (int i = 0; i < BLOCK; i++)                                                   \
                    delta[i] = 0.0f + delta[i] / divisor * factor * weight;                       \
                for (int i = 0; i < size; i++)                                                    \
                    ready[i] = narrow_##TYPE(delta[i] + wide_##TYPE(base[done + i]));             \
                done += size;                                                                     \
                at = 0;                                                                           \
            }                                                                                     \
            out[start + __builtin_ctzll(word)] = ready[at++];                                     \
        }                                                                                         \
    }                                                                                             \
}

PASSES(float32)
PASSES(bfloat16)
PASSES(float16)
