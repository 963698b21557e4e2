// object: code written while it runs, by changing protection (write xor execute) and in place
// status: captured
#include "object.h"
#include <sys/mman.h>

static void put(unsigned char *code, uint32_t number) {
    code[0] = 0xb8;
    memcpy(code + 1, &number, 4);
    code[5] = 0xc3;
}

int main(void) {
    unsigned char *strict = mmap(0, 16 * 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int all = PROT_READ | PROT_WRITE | PROT_EXEC;
    unsigned char *loose = mmap(0, 16 * 4096, all, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(strict != MAP_FAILED && loose != MAP_FAILED);
    static uint32_t numbers[16];
    uint32_t step = 0;
    int begun = 0;
    do {
        int page = step % 16;
        numbers[page] = ++step;
        CHECK(mprotect(strict + page * 4096, 4096, PROT_READ | PROT_WRITE) == 0);
        put(strict + page * 4096, step);
        CHECK(mprotect(strict + page * 4096, 4096, PROT_READ | PROT_EXEC) == 0);
        put(loose + page * 4096, step + 1);
        if (step == 16) begun = 1, ready();
        for (int at = 0; begun && at < 16; at++) {
            CHECK_EQUAL(((uint32_t (*)(void))(strict + at * 4096))(), numbers[at]);
            CHECK_EQUAL(((uint32_t (*)(void))(loose + at * 4096))(), numbers[at] + 1);
        }
    } while (!begun || go_on());
    PASS();
}
