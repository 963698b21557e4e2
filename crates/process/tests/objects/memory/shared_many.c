// object: many objects of shared anonymous memory, made and given up all the time
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096
#define MANY 40

int main(void) {
    static unsigned char *memory[MANY], said[MANY];
    static size_t pages[MANY];
    unsigned step = 0;
    ready();
    do {
        int at = step % MANY;
        if (memory[at]) CHECK(munmap(memory[at], pages[at] * P) == 0);
        pages[at] = step % 7 + 1;
        memory[at] = mmap(0, pages[at] * P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(memory[at] != MAP_FAILED);
        said[at] = step;
        memset(memory[at], step, pages[at] * P);
        step++;
        int other = step * 11 % MANY;
        if (memory[other]) {
            said[other]++;
            memset(memory[other], said[other], pages[other] * P);
        }
    } while (go_on());
    for (int at = 0; at < MANY; at++)
        for (size_t i = 0; memory[at] && i < pages[at] * P; i++) CHECK_EQUAL(memory[at][i], said[at]);
    PASS();
}
