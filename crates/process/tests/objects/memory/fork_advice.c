// object: memory that a child does not get (`MADV_DONTFORK`), or gets empty (`MADV_WIPEONFORK`)
// status: captured
#include "object.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define P 4096

int main(void) {
    unsigned char *memory = mmap(0, 8 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    memset(memory, 1, 8 * P);
    CHECK(madvise(memory + P, 2 * P, MADV_WIPEONFORK) == 0);
    CHECK(madvise(memory + 4 * P, 2 * P, MADV_DONTFORK) == 0);
    ready();
    unsigned char step = 1;
    do {
        int ask[2];
        CHECK(pipe(ask) == 0);
        memset(memory, ++step, 8 * P);
        // A page of its own each time, so that a child is forked in the epoch of the advice as well.
        unsigned char *more = mmap(0, 2 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(more != MAP_FAILED);
        memset(more, step, 2 * P);
        CHECK(madvise(more, 2 * P, MADV_WIPEONFORK) == 0);
        if (step % 2) CHECK(madvise(more, 2 * P, MADV_KEEPONFORK) == 0);
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            // Looks when it has been through some checkpoints.
            char byte;
            close(ask[1]);
            if (read(ask[0], &byte, 1) != 1) _exit(1);
            for (int page = 0; page < 4; page++)
                if (memory[page * P] != (page == 1 || page == 2 ? 0 : step)) _exit(10 + page);
            for (int page = 0; page < 2; page++)
                if (more[page * P] != (step % 2 ? step : 0)) _exit(20 + page);
            if (mincore(memory + 4 * P, 2 * P, (void *)&byte) == 0 || errno != ENOMEM) _exit(30);
            _exit(0);
        }
        for (int i = 0; i < 4; i++) go_on();
        CHECK(write(ask[1], "x", 1) == 1);
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK_EQUAL(WEXITSTATUS(status), 0);
        close(ask[0]), close(ask[1]), munmap(more, 2 * P);
        for (int page = 0; page < 8; page++) CHECK_EQUAL(memory[page * P], step);
    } while (!object_asked);
    PASS();
}
