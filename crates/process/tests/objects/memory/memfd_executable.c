// object: memfd as a JIT uses it: one mapping to write code, another to run it
// status: captured
#include "object.h"
#include <sys/mman.h>

// mov eax, NUMBER; ret
static void put(unsigned char *code, uint32_t number) {
    code[0] = 0xb8;
    memcpy(code + 1, &number, 4);
    code[5] = 0xc3;
}

int main(void) {
    int fd = memfd_create("code", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 16 * 4096) == 0);
    unsigned char *write = mmap(0, 16 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    unsigned char *run = mmap(0, 16 * 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    CHECK(write != MAP_FAILED && run != MAP_FAILED);
    static uint32_t numbers[16];
    for (int page = 0; page < 16; page++) put(write + page * 4096, 0);
    ready();
    uint32_t step = 0;
    do {
        step++;
        numbers[step % 16] = step;
        put(write + step % 16 * 4096, step);
        for (int page = 0; page < 16; page++) {
            uint32_t (*function)(void) = (uint32_t (*)(void))(run + page * 4096);
            CHECK_EQUAL(function(), numbers[page]);
        }
    } while (go_on());
    PASS();
}
