// object: shared anonymous memory (`MAP_SHARED | MAP_ANONYMOUS`), written by parent and child
// status: captured
// note: one object however many processes map it
#include "object.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define PAGES 300

int main(void) {
    volatile uint64_t *memory = mmap(0, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        // Answers in the second word of a page what the parent said in the first.
        for (uint64_t step = 0; !memory[PAGES * 512 - 1]; step++) {
            for (int page = 0; page < PAGES; page++) memory[page * 512 + 1] = memory[page * 512];
            memory[511] = step;
            go_on();
        }
        _exit(7);
    }
    ready();
    static uint64_t said[PAGES];
    uint64_t step = 0;
    do {
        for (int i = 0; i < 5; i++) {
            int page = (step * 13 + i * 71) % PAGES;
            said[page]++;
            memory[page * 512] = said[page];
        }
        step++;
    } while (go_on());
    for (int page = 0; page < PAGES; page++) CHECK_EQUAL(memory[page * 512], said[page]);
    double begun = now();
    for (int page = 0; page < PAGES; page++)
        while (memory[page * 512 + 1] != said[page]) CHECK(now() - begun < 5);
    memory[PAGES * 512 - 1] = 1;
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    PASS();
}
