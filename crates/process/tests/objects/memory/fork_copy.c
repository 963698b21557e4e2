// object: private memory after a fork: parent and child each write their own copy
// status: captured
// note: a fork on the copy as well, so that what is shared by copy-on-write stays shared
#include "object.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define P 4096

int main(void) {
    uint64_t *memory = mmap(0, 64 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    static uint64_t said[64];
    ready();
    uint64_t step = 0;
    do {
        int ask[2], answer[2];
        CHECK(pipe(ask) == 0 && pipe(answer) == 0);
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            char byte;
            uint64_t sum = 0;
            for (int page = 0; page < 64; page += 2) memory[page * 512] += 1000;
            if (read(ask[0], &byte, 1) != 1) _exit(1);
            for (int page = 0; page < 64; page++) sum += memory[page * 512];
            if (write(answer[1], &sum, 8) != 8) _exit(1);
            _exit(0);
        }
        uint64_t sum, expected = 32 * 1000;
        for (int page = 0; page < 64; page++) expected += said[page];
        for (int page = step % 3; page < 64; page += 3) memory[page * 512] = ++said[page];
        for (int i = 0; i < 3; i++) go_on();
        CHECK(write(ask[1], "x", 1) == 1);
        CHECK(read(answer[0], &sum, 8) == 8);
        CHECK_EQUAL(sum, expected);
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        for (int i = 0; i < 2; i++) close(ask[i]), close(answer[i]);
        for (int page = 0; page < 64; page++) CHECK_EQUAL(memory[page * 512], said[page]);
        step++;
    } while (!object_asked);
    PASS();
}
