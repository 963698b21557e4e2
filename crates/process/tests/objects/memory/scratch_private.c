// object: a file of a scratch directory, mapped privately with written pages, then renamed and removed
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>

#define P 4096

int main(void) {
    int fd = open("/tmp/first", O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0);
    for (int page = 0; page < 32; page++) {
        char content[P];
        memset(content, page + 1, P);
        CHECK(write(fd, content, P) == P);
    }
    close(fd);
    fd = open("/tmp/first", O_RDONLY);
    char *memory = mmap(0, 32 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(memory != MAP_FAILED);
    close(fd);
    ready();
    static unsigned char said[16];
    unsigned step = 0;
    do {
        unsigned page = step % 16;
        memory[page * P + 10] = ++said[page];
        if (step == 8) CHECK(rename("/tmp/first", "/tmp/second") == 0);
        if (step == 24) CHECK(unlink("/tmp/second") == 0);
        step++;
    } while (go_on());
    for (int page = 0; page < 32; page++) {
        CHECK_EQUAL(memory[page * P], page + 1);
        CHECK_EQUAL((unsigned char)memory[page * P + 10], page < 16 ? said[page] : page + 1);
    }
    PASS();
}
