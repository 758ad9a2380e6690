//go:build !purego

#include "textflag.h"

// SHA-256 of two streams with Intel's SHA instructions, as in S. Gulley et al., "Intel SHA Extensions", 2013. Every
// four rounds of the first stream are followed by the same four rounds of the second, which do not depend on them.

// K is the address of the round constants. M, the message of two rounds, is an implicit operand of SHA256RNDS2.
#define K AX
#define M X0
#define TMP X13
#define FLIP X14

// The first stream: state and the last 16 words of the message schedule.
#define ABEF1 X1
#define CDGH1 X2
#define W10 X3
#define W11 X4
#define W12 X5
#define W13 X6

// The second stream.
#define ABEF2 X7
#define CDGH2 X8
#define W20 X9
#define W21 X10
#define W22 X11
#define W23 X12

// LOAD loads four words of a block, which are big-endian.
#define LOAD(i, data, w) \
	MOVOU (i*16)(data), w; \
	PSHUFB FLIP, w

// ROUNDS does rounds 4*i to 4*i+3 with the words w.
#define ROUNDS(i, w, abef, cdgh) \
	MOVO w, M; \
	PADDD (i*16)(K), M; \
	SHA256RNDS2 M, abef, cdgh; \
	PSHUFD $0x0e, M, M; \
	SHA256RNDS2 M, cdgh, abef

// NEXT completes the four words after w, of which prev are those before.
#define NEXT(prev, w, next) \
	MOVO w, TMP; \
	PALIGNR $4, prev, TMP; \
	PADDD TMP, next; \
	SHA256MSG2 w, next

// BOTH does four rounds of each stream, with words that are loaded.
#define BOTH(i, w1, w2) \
	ROUNDS(i, w1, ABEF1, CDGH1); \
	ROUNDS(i, w2, ABEF2, CDGH2)

// SCHEDULE does the same, and completes the words of the next four rounds. MSG1 begins those of twelve rounds later.
#define SCHEDULE(i, prev1, w1, next1, prev2, w2, next2) \
	ROUNDS(i, w1, ABEF1, CDGH1); \
	NEXT(prev1, w1, next1); \
	SHA256MSG1 w1, prev1; \
	ROUNDS(i, w2, ABEF2, CDGH2); \
	NEXT(prev2, w2, next2); \
	SHA256MSG1 w2, prev2

// UNPACK turns the words A to H into the order of the instructions.
#define UNPACK(ptr, abef, cdgh) \
	MOVOU (ptr), abef; \
	MOVOU 16(ptr), cdgh; \
	PSHUFD $0xb1, abef, abef; \
	PSHUFD $0x1b, cdgh, cdgh; \
	MOVO abef, TMP; \
	PALIGNR $8, cdgh, abef; \
	PBLENDW $0xf0, TMP, cdgh

// PACK is the inverse of UNPACK.
#define PACK(ptr, abef, cdgh) \
	PSHUFD $0x1b, abef, abef; \
	PSHUFD $0xb1, cdgh, cdgh; \
	MOVO abef, TMP; \
	PBLENDW $0xf0, cdgh, abef; \
	PALIGNR $8, TMP, cdgh; \
	MOVOU abef, (ptr); \
	MOVOU cdgh, 16(ptr)

// ADD adds a state that was saved.
#define ADD(saved, s) \
	MOVOU saved, TMP; \
	PADDD TMP, s

// func blocksSHA(a, b *state, p, q *byte, n int)
TEXT ·blocksSHA(SB), NOSPLIT, $64-40
	MOVQ a+0(FP), BX
	MOVQ b+8(FP), CX
	MOVQ p+16(FP), SI
	MOVQ q+24(FP), DI
	MOVQ n+32(FP), DX
	LEAQ k<>(SB), K
	MOVOU flip<>(SB), FLIP
	UNPACK(BX, ABEF1, CDGH1)
	UNPACK(CX, ABEF2, CDGH2)

block:
	MOVOU ABEF1, abef1-64(SP)
	MOVOU CDGH1, cdgh1-48(SP)
	MOVOU ABEF2, abef2-32(SP)
	MOVOU CDGH2, cdgh2-16(SP)

	LOAD(0, SI, W10)
	LOAD(0, DI, W20)
	BOTH(0, W10, W20)
	LOAD(1, SI, W11)
	LOAD(1, DI, W21)
	BOTH(1, W11, W21)
	SHA256MSG1 W11, W10
	SHA256MSG1 W21, W20
	LOAD(2, SI, W12)
	LOAD(2, DI, W22)
	BOTH(2, W12, W22)
	SHA256MSG1 W12, W11
	SHA256MSG1 W22, W21
	LOAD(3, SI, W13)
	LOAD(3, DI, W23)
	SCHEDULE(3, W12, W13, W10, W22, W23, W20)
	SCHEDULE(4, W13, W10, W11, W23, W20, W21)
	SCHEDULE(5, W10, W11, W12, W20, W21, W22)
	SCHEDULE(6, W11, W12, W13, W21, W22, W23)
	SCHEDULE(7, W12, W13, W10, W22, W23, W20)
	SCHEDULE(8, W13, W10, W11, W23, W20, W21)
	SCHEDULE(9, W10, W11, W12, W20, W21, W22)
	SCHEDULE(10, W11, W12, W13, W21, W22, W23)
	SCHEDULE(11, W12, W13, W10, W22, W23, W20)
	SCHEDULE(12, W13, W10, W11, W23, W20, W21)
	ROUNDS(13, W11, ABEF1, CDGH1)
	NEXT(W10, W11, W12)
	ROUNDS(13, W21, ABEF2, CDGH2)
	NEXT(W20, W21, W22)
	ROUNDS(14, W12, ABEF1, CDGH1)
	NEXT(W11, W12, W13)
	ROUNDS(14, W22, ABEF2, CDGH2)
	NEXT(W21, W22, W23)
	BOTH(15, W13, W23)

	ADD(abef1-64(SP), ABEF1)
	ADD(cdgh1-48(SP), CDGH1)
	ADD(abef2-32(SP), ABEF2)
	ADD(cdgh2-16(SP), CDGH2)
	ADDQ $64, SI
	ADDQ $64, DI
	DECQ DX
	JNZ block

	PACK(BX, ABEF1, CDGH1)
	PACK(CX, ABEF2, CDGH2)
	RET

// func features7() uint32
TEXT ·features7(SB), NOSPLIT, $0-4
	MOVL $0, ret+0(FP)
	MOVL $0, AX
	MOVL $0, CX
	CPUID
	CMPL AX, $7
	JLT done
	MOVL $7, AX
	MOVL $0, CX
	CPUID
	MOVL BX, ret+0(FP)

done:
	RET

// The bytes of four big-endian words in the order of little-endian ones.
DATA flip<>+0(SB)/8, $0x0405060700010203
DATA flip<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL flip<>(SB), NOPTR|RODATA, $16

// The round constants. The linker aligns them to 16 bytes, as PADDD demands.
DATA k<>+0(SB)/8, $0x71374491428a2f98
DATA k<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA k<>+16(SB)/8, $0x59f111f13956c25b
DATA k<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA k<>+32(SB)/8, $0x12835b01d807aa98
DATA k<>+40(SB)/8, $0x550c7dc3243185be
DATA k<>+48(SB)/8, $0x80deb1fe72be5d74
DATA k<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA k<>+64(SB)/8, $0xefbe4786e49b69c1
DATA k<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA k<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA k<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA k<>+96(SB)/8, $0xa831c66d983e5152
DATA k<>+104(SB)/8, $0xbf597fc7b00327c8
DATA k<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA k<>+120(SB)/8, $0x1429296706ca6351
DATA k<>+128(SB)/8, $0x2e1b213827b70a85
DATA k<>+136(SB)/8, $0x53380d134d2c6dfc
DATA k<>+144(SB)/8, $0x766a0abb650a7354
DATA k<>+152(SB)/8, $0x92722c8581c2c92e
DATA k<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA k<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA k<>+176(SB)/8, $0xd6990624d192e819
DATA k<>+184(SB)/8, $0x106aa070f40e3585
DATA k<>+192(SB)/8, $0x1e376c0819a4c116
DATA k<>+200(SB)/8, $0x34b0bcb52748774c
DATA k<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA k<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA k<>+224(SB)/8, $0x78a5636f748f82ee
DATA k<>+232(SB)/8, $0x8cc7020884c87814
DATA k<>+240(SB)/8, $0xa4506ceb90befffa
DATA k<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL k<>(SB), NOPTR|RODATA, $256
