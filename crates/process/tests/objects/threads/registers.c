// object: floating-point and vector registers
// status: captured
#include "object.h"
#include <immintrin.h>
#include <pthread.h>

__attribute__((target("avx2"))) static void *spin(void *seed) {
    __m256i sum = _mm256_set1_epi64x((long)seed), step = _mm256_set_epi64x(1, 2, 3, 4);
    double x = 1;
    long rounds = 0;
    while (!object_asked) {
        for (int i = 0; i < 1000; i++, rounds++) {
            sum = _mm256_add_epi64(sum, step);
            x = x * 1.0000001 / 1.0000001;
        }
        long words[4];
        _mm256_storeu_si256((void *)words, sum);
        for (int i = 0; i < 4; i++) CHECK_EQUAL(words[i], (long)seed + rounds * (4 - i));
        CHECK(x > 0.999 && x < 1.001);
    }
    return 0;
}

int main(void) {
    pthread_t threads[2];
    for (long i = 0; i < 2; i++) CHECK(!pthread_create(&threads[i], 0, spin, (void *)(i * 77)));
    ready();
    while (go_on()) {}
    for (int i = 0; i < 2; i++) CHECK(!pthread_join(threads[i], 0));
    PASS();
}
