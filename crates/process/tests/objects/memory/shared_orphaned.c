// object: shared anonymous memory whose creator has gone
// status: captured
#include "object.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

// The first process unmaps it at once; a grandchild has it from a child that has ended.
int main(void) {
    int told[2], asked[2];
    CHECK(pipe(told) == 0 && pipe(asked) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        volatile uint64_t *memory = mmap(0, 64 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) _exit(1);
        for (int page = 0; page < 64; page++) memory[page * 512] = page + 1;
        if (fork()) _exit(0);
        uint64_t step = 0;
        char byte;
        while (step == 0 || read(asked[0], &byte, 1) == 1) {
            step++;
            uint64_t sum = 0;
            for (int page = 0; page < 64; page++) sum += memory[page * 512];
            for (int page = 0; page < 8; page++) memory[(step * 8 + page) % 64 * 512]++;
            if (write(told[1], &sum, 8) != 8) _exit(1);
        }
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    ready();
    uint64_t sum, expected = 64 * 65 / 2;
    do {
        CHECK(read(told[0], &sum, 8) == 8);
        CHECK_EQUAL(sum, expected);
        expected += 8;
        CHECK(write(asked[1], "x", 1) == 1);
    } while (go_on());
    PASS();
}
