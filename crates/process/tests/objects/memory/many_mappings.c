// object: thousands of mappings
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096
#define MANY 3000

int main(void) {
    unsigned char *memory = mmap(0, 2 * MANY * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    // Every second page is one that cannot be written.
    for (int i = 0; i < MANY; i++) CHECK(mprotect(memory + (2 * i + 1) * P, P, PROT_READ) == 0);
    static unsigned char said[MANY];
    ready();
    unsigned step = 0;
    do {
        for (int i = 0; i < 20; i++) {
            unsigned at = (step * 20 + i * 7) % MANY;
            memory[2 * at * P] = ++said[at];
        }
        // One goes and comes back.
        unsigned gone = step * 13 % MANY;
        unsigned char *place = memory + 2 * gone * P;
        CHECK(munmap(place, P) == 0);
        int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS;
        CHECK(mmap(place, P, PROT_READ | PROT_WRITE, flags, -1, 0) == place);
        said[gone] = 0;
        step++;
    } while (go_on());
    for (int at = 0; at < MANY; at++) CHECK_EQUAL(memory[2 * at * P], said[at]);
    PASS();
}
