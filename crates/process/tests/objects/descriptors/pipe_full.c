// object: pipe that is full, with a writer that waits
// status: captured
#include "object.h"
#include <pthread.h>

static int ends[2];

static void *fill(void *nothing) {
    for (uint32_t count = 0;; count++)
        if (write(ends[1], &count, 4) != 4) return nothing;
}

int main(void) {
    CHECK(!pipe(ends));
    pthread_t thread;
    pthread_create(&thread, 0, fill, 0);
    usleep(20000);
    ready();
    uint32_t expected = 0, got;
    do {
        for (int i = 0; i < 100; i++, expected++) {
            CHECK(read(ends[0], &got, 4) == 4);
            CHECK_EQUAL(got, expected);
        }
    } while (go_on());
    for (int i = 0; i < 40000; i++, expected++) CHECK(read(ends[0], &got, 4) == 4 && got == expected);
    PASS();
}
