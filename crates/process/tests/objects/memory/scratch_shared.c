// object: a file of a scratch directory, mapped by several processes, each with views of its own
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define P 4096

static volatile uint64_t *view(off_t page, int protection) {
    int fd = open("/dev/shm/views", O_RDWR);
    CHECK(fd >= 0);
    void *memory = mmap(0, 32 * P, protection, MAP_SHARED, fd, page * P);
    CHECK(memory != MAP_FAILED);
    close(fd);
    return memory;
}

int main(void) {
    int fd = open("/dev/shm/views", O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 64 * P) == 0 && close(fd) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        // The second half from the first, plus one.
        volatile uint64_t *from = view(0, PROT_READ), *to = view(32, PROT_READ | PROT_WRITE);
        for (;;) {
            for (int page = 0; page < 32; page++)
                if (to[page * 512] != from[page * 512] + 1) to[page * 512] = from[page * 512] + 1;
            go_on();
        }
    }
    volatile uint64_t *mine = view(0, PROT_READ | PROT_WRITE), *theirs = view(32, PROT_READ);
    ready();
    uint64_t step = 0;
    do {
        mine[step % 32 * 512]++;
        step++;
    } while (go_on());
    double begun = now();
    uint64_t sum = 0;
    for (int page = 0; page < 32; page++) {
        sum += mine[page * 512];
        while (theirs[page * 512] != mine[page * 512] + 1) CHECK(now() - begun < 5);
    }
    CHECK_EQUAL(sum, step);
    PASS();
}
