// object: memory written by several threads, with stacks of their own
// status: captured
#include "object.h"
#include <pthread.h>
#include <sys/mman.h>

static unsigned char *memory;
static uint64_t counts[4][64];
static int wrong;

static void *work(void *number) {
    uintptr_t me = (uintptr_t)number;
    volatile unsigned char room[50000];
    uint64_t step = 0;
    while (!object_asked) {
        unsigned page = step * 7 % 64;
        room[step * 997 % 50000] = step;
        uint64_t *mine = (uint64_t *)(memory + page * 4096) + me;
        if (*mine != counts[me][page]) wrong = 1;
        *mine = ++counts[me][page];
        if (room[step * 997 % 50000] != (unsigned char)step) wrong = 1;
        if (step++ % 50 == 0) go_on();
    }
    return 0;
}

int main(void) {
    memory = mmap(0, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], 0, work, (void *)i) == 0);
    ready();
    while (go_on()) {}
    for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
    CHECK(!wrong);
    for (int page = 0; page < 64; page++)
        for (int i = 0; i < 4; i++) CHECK_EQUAL(((uint64_t *)(memory + page * 4096))[i], counts[i][page]);
    PASS();
}
