// object: memory that the kernel writes (`read`, `recv`, `getrandom`, `clock_gettime` into it)
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>

#define P 4096

int main(void) {
    unsigned char *own = mmap(0, 64 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *shared = mmap(0, 64 * P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int ends[2];
    CHECK(own != MAP_FAILED && shared != MAP_FAILED && pipe(ends) == 0);
    static unsigned char random[64][16], piped[64];
    ready();
    unsigned step = 0;
    do {
        unsigned page = step * 13 % 64;
        CHECK(getrandom(random[page], 16, 0) == 16);
        CHECK(write(ends[1], random[page], 16) == 16);
        CHECK(read(ends[0], own + page * P + 100, 16) == 16);
        unsigned char byte = ++piped[page];
        CHECK(write(ends[1], &byte, 1) == 1);
        CHECK(read(ends[0], shared + page * P + 200, 1) == 1);
        step++;
    } while (go_on());
    for (int page = 0; page < 64; page++) {
        CHECK(!memcmp(own + page * P + 100, random[page], 16));
        CHECK_EQUAL(shared[page * P + 200], piped[page]);
    }
    PASS();
}
