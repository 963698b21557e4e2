// object: memory that another process writes (`process_vm_writev`)
// status: captured
#include "object.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { PAGES = 16, WORDS = 512 };

int main(void) {
    unsigned long *pages = mmap(0, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned long *seen = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = fork();
    if (!child) {
        // It never writes its pages itself; it says what is in them.
        for (;;) {
            for (int page = 0; page < PAGES; page++) seen[page] = ((volatile unsigned long *)pages)[page * WORDS];
            usleep(200);
        }
    }
    ready();
    for (unsigned long round = 1; go_on(); round++) {
        int page = round % PAGES;
        struct iovec from = {&round, sizeof round}, to = {pages + page * WORDS, sizeof round};
        CHECK_EQUAL(process_vm_writev(child, &from, 1, &to, 1, 0), sizeof round);
        for (int tries = 0; __atomic_load_n(seen + page, __ATOMIC_RELAXED) != round; tries++) {
            if (tries > 10000) FAIL("page %d has %lu, not %lu", page, seen[page], round);
            usleep(1000);
        }
        unsigned long all[PAGES];
        for (int other = 0; other < PAGES; other++) {
            struct iovec into = {all + other, 8}, of = {pages + other * WORDS, 8};
            CHECK_EQUAL(process_vm_readv(child, &into, 1, &of, 1, 0), 8);
            unsigned long wanted = round - (round - other) % PAGES;
            if (round >= PAGES) CHECK_EQUAL(all[other], wanted);
        }
    }
    PASS();
}
